"""From image sets to batches on the device: samplers, loaders, the cache of decoded images."""
