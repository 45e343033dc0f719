"""From parallel text to batches: vocabulary, memory-mapped corpus, batching, loader, and the generated sample corpus."""
