"""WebUI: AUTOMATIC1111, Forge and their kin.

Only files of this folder, and `scripts/`, may import `modules`, and they do so inside functions, so that each can
be read and tested without a host. What a host promises is used in the form that holds in all of them.

    interrupt    Interrupt and Skip
    model/       the host's UNet, VAE and weights files: family, latents, callbacks, noise, adapter
    panel/       controls or API values -> a checked `Job`; the line that says what it will do
    tiles/       a batch of tiles as one nested img2img of the host
    generation/  one generation of the host becomes one upscale; the ways in are in `entry`

Imports go down this list: `generation` may use all, `model` only what stands above it.
"""
