"""SPACE: spatial attention for the foreground, a scene mixture for the background (arXiv 2001.02407)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The detector; the harness clusters its what-latents."""
    small = (
        "of 32 images (8 on fruit); perceptrons for glimpses and background, which has one component; a "
        "narrow backbone; what-latents of 32; a foreground learning rate of 3e-4 (4e-4 on fruit), falling to "
        "a tenth; priors, temperature and biases of its own, so that cells start present and with sides from "
        "the prior; a prior of scale that does not fall on digits, and has five times the published deviation "
        "on fruit; a pixel's deviation of 0.25 on fruit; boxes of digits are cut at a brightness of 0.4, those of "
        "fruits at 0.25 and to where the fruit itself makes the picture (trim_hidden); boxes end where the "
        "brightness crosses that threshold (trim_edges), on digits rounded to whole pixels; gated cells; a tenth "
        "of the boundary loss on fruit"
    )
    return [
        ModelSpec(
            name="space",
            label="SPACE",
            summary="Spatial attention over a scene mixture (Lin et al. 2020): detects on any background",
            target="objbench_plugins.space.model:Space",
            generate="objbench_plugins.space.generate:SpaceGenerator",
            check="objbench_plugins.space.check:fault_of",
            clusters=False,
            paper=(
                "Z. Lin, Y.-F. Wu, S. V. Peri, W. Sun, G. Singh, F. Deng, J. Jiang, S. Ahn: SPACE: "
                "Unsupervised Object-Oriented Scene Representation via Spatial Attention and Decomposition, "
                "arXiv 2001.02407, 2020"
            ),
            code="https://github.com/zhixuan-lin/SPACE",
            licence="MIT",
            differs={
                "*": (
                    "Where paper and published code disagree, the code is followed. From both: detection "
                    "takes the mode of every latent, where the published evaluation samples where; boxes "
                    "are cut to what is bright in them (trim); the constant of the boundary loss is left "
                    "out, and the loss ends one step earlier; images may have one channel."
                ),
                "demo": f"Scenes of 64x64 with 1 to 5 digits; 1,900 steps (2,600 on fruit) {small}.",
                "small": (
                    f"Scenes of 64x64 with 1 to 5 digits; 5,000 steps (9,000 on fruit) {small} and on digits, where a "
                    "pixel's deviation is 0.135."
                ),
                "paper": (
                    "Settings are those of the published 3d_room_large, but what-latents of 256, published "
                    "32, as GMAIR's comparison says (its Appendix B.1), which does not name a configuration."
                ),
            },
            prior_knowledge=(
                "No size of an object: the prior of scale is the published one under paper, and under demo and "
                "small one with the published start as its mean (17 px on 64). Under demo and small how many "
                "objects an image may hold: 12 cells are kept, 36 on fruit. The number of classes reaches the "
                "mixture alone (gmm.clusters). Its other settings there were chosen on validation scenes."
            ),
        )
    ]
