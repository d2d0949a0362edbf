"""The engine on a GPU: the same networks as plain data, on fused kernels, in captured graphs."""
