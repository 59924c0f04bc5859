"""GMAIR: spatial attention and a Gaussian mixture in one generative model (arXiv 2106.01722)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The detector of the paper."""
    small = (
        "of 32 images (8 on fruit2d-sim); a small backbone, heads, encoders and decoder; what-latents "
        "of 32; learning rates of 1e-3, falling; clipped gradients; relaxed presence; biases that make "
        "cells start present and dark; an overlap loss to the end on digits; gated cells; a mixture "
        "that is started once from the what-latents; on fruit2d-sim a reconstruction coefficient of 2."
    )
    return [
        ModelSpec(
            name="gmair",
            label="GMAIR",
            summary="Gaussian Mixture Attend, Infer, Repeat (Zhu et al. 2021): detects and clusters at once",
            target="objbench_plugins.gmair.model:Gmair",
            paper=(
                "W. Zhu, Y. Shen, L. Yu, L. P. Aguirre Sanchez: GMAIR: Unsupervised Object Detection Based "
                "on Spatial Attention and Gaussian Mixture, arXiv 2106.01722, 2021"
            ),
            code="https://github.com/EmoFuncs/GMAIR-pytorch",
            licence="MIT",
            differs={
                "*": (
                    "Where paper and published code disagree, the code is followed. From both: colour, "
                    "alpha and importance are multiplied before they are interpolated (renderer), presence "
                    "logits and the means of where and depth are clamped at 10, glimpses are black outside "
                    "the image, the overlap loss and the detaching of the mixture prior end one step "
                    "earlier, decoder, neck and ResNet start from torch's initialisation."
                ),
                "demo": f"Scenes of 64x64 with 1 to 5 digits; 1,600 steps (2,400 on fruit2d-sim) {small}",
                "small": f"Scenes of 64x64 with 1 to 5 digits; 9,000 steps {small}",
                "paper": (
                    "The mixture prior trains at 5e-5 (lr_what), published at 1e-4; encoders and decoder "
                    "train at 5e-5 on all data, published on fruit alone."
                ),
            },
            prior_knowledge=(
                "The number of clusters: 10, and 9 on fruit2d-sim under demo and small. The largest side of "
                "a box: 72 px under paper, 36 px under demo and small. Under demo and small how many "
                "objects an image may hold: 12 cells are kept, 36 on fruit2d-sim. Its other settings there "
                "were chosen on validation scenes."
            ),
        )
    ]
