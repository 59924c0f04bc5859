"""GMAIR: spatial attention and a Gaussian mixture in one generative model (arXiv 2106.01722)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The detector of the paper."""
    short = (
        "of 16 images (8 on fruit); a small backbone, heads, encoders and decoder; what-latents of 32; learning "
        "rates of 1.5e-3 (1e-3 on fruit), falling; clipped gradients; relaxed presence; biases that make cells "
        "start present and dark; presence logits, means of where and depth and raw deviations clamped at 10; "
        "colour, alpha and importance multiplied before they are interpolated (renderer=linear); glimpses black "
        "outside the image; an overlap loss to the end on digits; gated cells; a mixture that is started once from "
        "the what-latents; on fruit a reconstruction coefficient of 2; boxes end where the brightness crosses 0.2 "
        "(trim_edges), on digits rounded to whole pixels"
    )
    return [
        ModelSpec(
            name="gmair",
            label="GMAIR",
            summary="Gaussian Mixture Attend, Infer, Repeat (Zhu et al. 2021): detects and clusters at once",
            target="objbench_plugins.gmair.model:Gmair",
            generate="objbench_plugins.gmair.generate:GmairGenerator",
            check="objbench_plugins.gmair.check:fault_of",
            paper=(
                "W. Zhu, Y. Shen, L. Yu, L. P. Aguirre Sanchez: GMAIR: Unsupervised Object Detection Based "
                "on Spatial Attention and Gaussian Mixture, arXiv 2106.01722, 2021"
            ),
            code="https://github.com/EmoFuncs/GMAIR-pytorch",
            licence="MIT",
            differs={
                "*": (
                    "Where paper and published code disagree, the code is followed. From the code: 9 clusters on "
                    "fruit, as many as its classes, published 10; a box without a bright pixel keeps its size "
                    "(published: it becomes negative)."
                ),
                "demo": f"Scenes of 64x64 with 1 to 5 digits; 2,400 steps {short}.",
                "small": (
                    f"Scenes of 64x64 with 1 to 5 digits; 16,000 steps (9,000 on fruit) {short}; a coefficient of 1 "
                    "for the overlap loss."
                ),
            },
            prior_knowledge=(
                "The number of clusters: 10, and 9 on fruit. The largest side of a box: 72 px under paper, 36 px "
                "under demo and small. Under demo and small how many objects an image may hold: 8 cells are "
                "kept, 36 on fruit. Its other settings there "
                "were chosen on validation scenes."
            ),
        )
    ]
