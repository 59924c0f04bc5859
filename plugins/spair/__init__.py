"""SPAIR: cells of a grid attend, infer and repeat, each seeing its neighbours (Crawford & Pineau 2019)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The detector; a Gaussian mixture on its what-latents does the clustering."""
    small = (
        "of 32 images (8 on fruit); a narrow backbone; what-latents of 32, anchor 36, glimpses of 16, "
        "layers of 256; no training wheels; a count prior that falls faster, and further on fruit; a "
        "learning rate of 1e-3, falling to a tenth; a reconstruction coefficient of 3 (2 on fruit) and a "
        "floor of 1e-6 under a pixel's probability; size priors of N(0, 1) on logits, as GMAIR; biases that "
        "make cells start present and dark; gated cells; on fruit cells of 8 pixels, "
        "and boxes cut to where the fruit itself makes the picture (trim_hidden); boxes end where the brightness "
        "crosses 0.2 (trim_edges), on digits 0.25, rounded to whole pixels."
    )
    return [
        ModelSpec(
            name="spair",
            label="SPAIR",
            summary="Spatially Invariant Attend, Infer, Repeat (Crawford & Pineau 2019)",
            target="objbench_plugins.spair.model:Spair",
            generate="objbench_plugins.spair.generate:SpairGenerator",
            check="objbench_plugins.spair.check:fault_of",
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
                    "Colour, alpha and importance are multiplied before they are interpolated; boxes are cut "
                    "to what is bright in them (trim); no noise is added to gradients, as the original does "
                    "at first; the backbone's layers and padding are those of the port."
                ),
                "demo": f"Scenes of 64x64 with 1 to 5 digits; 1,200 steps (1,700 on fruit) {small}",
                "small": f"Scenes of 64x64 with 1 to 5 digits; 9,000 steps {small}",
                "paper": (
                    "Settings are those of the original code, but what-latents of 256 (originally 50) and an "
                    "anchor of 72 (48), as GMAIR's comparison says (its Appendix B.1). That comparison ran "
                    "the port, where other defaults are known: glimpses of 28, layers of 256 and 128, no "
                    "clipping, a size prior with a mean logit of 7, a reconstruction term summed over the "
                    "batch."
                ),
            },
            prior_knowledge=(
                "No size of an object: the prior of box sizes is the published one under paper, and N(0, 1) on "
                "logits under demo and small. The largest side of a box: 72 px under paper, 36 px under demo "
                "and small. Under demo and small how many objects an image may hold: 12 cells are kept, 36 on "
                "fruit. The number of classes reaches the mixture alone (gmm.clusters). Its other settings "
                "there were chosen on validation scenes."
            ),
        )
    ]
