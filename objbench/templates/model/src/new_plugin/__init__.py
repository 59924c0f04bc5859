"""Registers the detector. Imports nothing heavy: `objbench list` imports this, and only this."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """`--models new-plugin`."""
    return [
        ModelSpec(
            name="new-plugin",
            summary="connected bright pixels, described by an autoencoder",
            target="new_plugin.model:NewPlugin",
            clusters=False,  # the harness clusters its what-latents
        )
    ]
