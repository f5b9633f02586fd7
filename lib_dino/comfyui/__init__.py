"""ComfyUI: the same core behind three nodes. The only room that imports `comfy`."""
