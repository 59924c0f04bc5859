"""AIR: a recurrent network attends to one object after another, infers it, and repeats (Eslami et al. 2016)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The detector; a Gaussian mixture on its what-latents does the clustering."""
    small = (
        "of 32 images; 5 objects; the paper's DAIR, which sees what is left of the image, through two convolutions; a "
        "relaxed presence in place of NVIL; Adam at 1e-3, falling to .3 of it; clipped gradients; what-latents of 32, "
        "glimpses of 16; objects start present, by higher odds; a pixel's deviation of 0.2; a "
        "scale prior of 2.5 times the deviation; boxes end where the brightness crosses 0.2 (trim_edges), on "
        "digits rounded to whole pixels."
    )
    return [
        ModelSpec(
            name="air",
            label="AIR",
            summary="Attend, Infer, Repeat (Eslami et al. 2016): one object after another, by a recurrent network",
            target="objbench_plugins.air.model:Air",
            clusters=False,
            paper=(
                "S. M. A. Eslami, N. Heess, T. Weber, Y. Tassa, D. Szepesvari, K. Kavukcuoglu, G. E. Hinton: Attend, "
                "Infer, Repeat: Fast Scene Understanding with Generative Models, NeurIPS 2016"
            ),
            code=(
                "the authors' is not public; reimplementations: https://github.com/akosiorek/attend_infer_repeat and "
                "https://github.com/pyro-ppl/pyro (examples/air)"
            ),
            licence="GPL-3.0 (akosiorek), Apache-2.0 (Pyro); no code was taken from either",
            differs={
                "*": (
                    "A box has the image's proportions and a side of sigmoid(scale), its centre is in the image "
                    "(tanh), so no box is empty or turned over; the expected KL of presence is computed in each step, "
                    "given the steps before. For detection, every latent is at its mode, boxes are cut to what is "
                    "bright in them (trim), and the score of an object is the probability that steps went as far."
                ),
                "demo": f"Scenes of 64x64; 3,300 steps {small}",
                "small": f"Scenes of 64x64; 16,000 steps {small}",
                "paper": (
                    "Scenes of 128x128, published 50x50 with digits of 28x28. What the paper does not print is as in "
                    "the two reimplementations: `info` lists it."
                ),
            },
            prior_knowledge=(
                "How many objects an image may hold: 3 under paper, 5 under demo and small. That a side is about a "
                "third of the image's (the scale prior), as in Pyro's settings. That the background is black. The "
                "number of classes reaches the mixture alone (gmm.clusters). Settings of demo and small were chosen on "
                "validation scenes."
            ),
        )
    ]
