"""Train TopK sparse autoencoders at many sizes. Importing this package costs nothing."""
