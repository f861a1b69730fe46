"""The only modules that know ComfyUI's model classes, devices, dtypes and folders."""
