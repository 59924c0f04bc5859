"""Slot Attention (Locatello et al. 2020)."""

from objbench import ModelSpec, hookimpl


@hookimpl
def objbench_models() -> list[ModelSpec]:
    """The autoencoder for object discovery; a Gaussian mixture on its slots does the clustering."""
    small = (
        "of 8 images; 8 slots of 24 values and layers of 24 channels; an encoder that halves the resolution once; a "
        "decoder of one layer of 5x5, which doubles a grid of 16x16, and one of 3x3, enlarged bilinearly; "
        "clipped gradients; weights that start attention as soft k-means on colours and places; slots that start "
        "around pixels far from each other in these (seeds=far); positions relative to each slot's own centre and "
        "extent in the decoder (frame=slot), as Biza et al. 2023 have it; segments of the last round's attention, not "
        "of the decoder's masks (segments=attention): on sprites-sim their foreground ARI is .82 before any training, "
        "and the decoder's .69 after 700 steps; a learning rate of 1e-3 after a warm-up of 100 steps,"
    )
    return [
        ModelSpec(
            name="slot-attention",
            label="Slot Attention",
            summary="Slots that compete for the pixels of an image (Locatello et al. 2020); answers with masks",
            target="objbench_plugins.slot_attention.model:SlotAttentionDetector",
            check="objbench_plugins.slot_attention.check:fault_of",
            clusters=False,
            paper="F. Locatello et al.: Object-Centric Learning with Slot Attention, NeurIPS 2020",
            code="https://github.com/google-research/google-research/tree/master/slot_attention",
            licence="Apache-2.0",
            differs={
                "*": (
                    "Boxes are around segments, the pixels at which a slot's mask is the largest; the score is half of "
                    "1 and the mean mask. The segment with most pixels at the image's border is left out as background "
                    "(background=kept keeps it). In detection, slots start with the same noise in each image. "
                    "Weights before a ReLU start as He et al. 2015 have it, not Glorot and Bengio 2010."
                ),
                "demo": f"2,000 steps {small} falling to a half in 1,500 steps.",
                "small": f"15,000 steps {small} falling to a half in 5,000 steps.",
                "paper": (
                    "Settings are those of the authors' code for CLEVR6 at 128x128, on all data sets; for images of "
                    "another size the decoder doubles its grid up to that size."
                ),
            },
            prior_knowledge=(
                "How many objects an image may hold: one less than there are slots, 7 under paper and 8 under demo and "
                "small. That the background touches the image's border most. Under demo and small, "
                "that pixels of one colour and place belong together. The number of classes reaches the mixture alone "
                "(gmm.clusters)."
            ),
        )
    ]
