"""SPAIR: cells of a grid attend, infer and repeat, each seeing its neighbours (Crawford & Pineau 2019)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The detector; a Gaussian mixture on its what-latents does the clustering."""
    small = (
        "of 32 images (8 on fruit2d-sim); a narrow backbone; what-latents of 32, anchor 36, glimpses of "
        "16; no training wheels; a count prior that falls faster; a learning rate of 1e-3; a "
        "reconstruction coefficient of 3 (2); biases that make cells start present and dark; gated "
        "cells."
    )
    return [
        ModelSpec(
            name="spair",
            label="SPAIR",
            summary="Spatially Invariant Attend, Infer, Repeat (Crawford & Pineau 2019)",
            target="objbench_plugins.spair.model:Spair",
            clusters=False,
            paper=(
                "E. Crawford, J. Pineau: Spatially Invariant Unsupervised Object Detection with "
                "Convolutional Neural Networks, AAAI 2019"
            ),
            code=(
                "https://github.com/e2crawfo/auto_yolo (branch aaai_2019); a port to PyTorch: "
                "https://github.com/yonkshi/SPAIR_pytorch"
            ),
            licence="MIT; the port has none",
            differs={
                "*": (
                    "Colour, alpha and importance are multiplied before they are interpolated; the "
                    "probability of a pixel is at least 1e-6, originally 1e-9; boxes are cut to what is "
                    "bright in them (trim); cells are computed a front at a time, with the same result as "
                    "one by one."
                ),
                "demo": f"Scenes of 64x64 with 1 to 5 digits; 1,200 steps (1,700 on fruit2d-sim) {small}",
                "small": f"Scenes of 64x64 with 1 to 5 digits; 6,000 steps {small}",
                "paper": (
                    "What-latents of 256 and an anchor of 72, as GMAIR's comparison says (its Appendix "
                    "B.1); batches of 16 and 440,000 steps, originally 32 and 300,000; glimpses of 28 and "
                    "layers of 256 and 128, as in the port, originally 14, 512 and 256; size priors from "
                    "the sizes of the objects."
                ),
            },
            prior_knowledge=(
                "The size of digits (14 px) and the usual size of fruits, as the prior of box sizes; the "
                "largest side of a box: 72 px under paper, 36 px under demo and small. Under demo and small "
                "how many objects an image may hold: 12 cells are kept, 36 on fruit2d-sim. The number of "
                "classes reaches the mixture alone (gmm.components). Its other settings there were chosen "
                "on validation scenes."
            ),
        )
    ]
