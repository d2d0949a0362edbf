"""The networks of the SDXL family, one file each, with the published state-dict names.

They know tensors and their own config, nothing of requests, files or devices.
"""
