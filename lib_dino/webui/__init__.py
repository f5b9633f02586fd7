"""The WebUI's side: AUTOMATIC1111, Forge and their kin.

Only files of this folder, and `scripts/`, may import `modules`, and they do so inside functions, so that each can
be read and tested without a host. What a host promises is used in the form that holds in all of them.

    args      what came from the panel or the API -> `Job`, checked
    controls  the panel's widgets, read off the settings
    entry     the ways in: script list, always-on panel, API
    takeover  one generation of the host becomes one upscaling: the host's saving, batches and infotext stay
    painting  one picture of it through the core
    pictures  PIL images, masks and decoded samples to tensors and back
    summary   one line that says what a job will do
    render    `run.Render`: a batch of tiles is one nested img2img of the host
    hooks     guidance at every model call, armed for our own tiles alone
    latent    the model's family, and latents to pictures
    noise     the same noise wherever tiles overlap, for every kind of sampler
    others    which of the other extensions act on the picture, which on each tile, which not at all
    screen    progress, live preview, Interrupt
    reports   what was measured: extra pictures for the gallery, files beside the saved picture
    weights   where the feature network comes from
    plots     axes for the X/Y/Z plot
"""
