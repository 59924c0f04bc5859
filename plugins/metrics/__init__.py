"""The metrics of the paper and of the field."""

from objbench import MetricSpec, hookimpl


@hookimpl
def objbench_metrics() -> list[MetricSpec]:
    """Metrics of localisation, clustering and counting; the first two give the columns of the paper's Table 2."""
    return [
        MetricSpec(
            name="ap50",
            summary="average precision of the boxes at IoU > 0.5 (VOC, all-point interpolation)",
            target="objbench_plugins.metrics.detection:ap50",
            weighted="objbench_plugins.metrics.detection:ap50_weighted",
            columns={"ap50": "AP (%, IoU=0.5)"},
            healthy={"ap50": (0.3, 1.0)},
        ),
        MetricSpec(
            name="clustering",
            summary="clusters against classes over correct boxes: ACC (one-to-one, many-to-one), NMI, usage",
            target="objbench_plugins.metrics.clustering:clustering",
            weighted="objbench_plugins.metrics.clustering:weighted",
            version=3,
            columns={"acc": "ACC (%)", "nmi": "NMI (%)"},
            more={"acc_all": "ACC of all objects (%)", "acc_many_to_one": "ACC many to one (%)"},
            meaningful={"acc": ("objects_found", 0.5), "nmi": ("objects_found", 0.5)},
            healthy={"largest_cluster": (0.0, 0.9)},
        ),
        MetricSpec(
            name="count_error",
            summary="number of objects an image, counting scores >= 0.5, and its mean absolute error",
            target="objbench_plugins.metrics.detection:count_error",
            version=2,
            more={"count_error": "Count error", "count": "Count"},
        ),
        MetricSpec(
            name="coco_ap",
            summary="COCO's AP at IoU .50:.05:.95, AP at .75 and AR; class-agnostic, of all boxes, crowds left out",
            target="objbench_plugins.metrics.detection:coco_ap",
            version=2,
            more={"coco_ap": "COCO AP (%)"},
        ),
        MetricSpec(
            name="f1",
            summary="precision, recall and F1 of the boxes with scores >= 0.5, at IoU > 0.5",
            target="objbench_plugins.metrics.detection:f1",
            weighted="objbench_plugins.metrics.detection:f1_weighted",
            more={"f1": "F1 (%)"},
        ),
        MetricSpec(
            name="ap_class",
            summary="COCO's AP at IoU 0.5 by class, clusters standing for classes (one to one, and many to one)",
            target="objbench_plugins.metrics.classes:ap_class",
            weighted="objbench_plugins.metrics.classes:ap_class_weighted",
            more={
                "ap_class": "AP of classes, one cluster each (%)",
                "ap_class_many": "AP of classes, many clusters each (%)",
            },
        ),
        MetricSpec(
            name="errors",
            summary="kinds of errors: wrong cluster, duplicate, badly placed, background, missed; shares and counts",
            target="objbench_plugins.metrics.classes:errors",
            weighted="objbench_plugins.metrics.classes:errors_weighted",
            more={
                "right": "Right (% of boxes)",
                "wrong_cluster": "Wrong cluster (% of boxes)",
                "duplicate": "Duplicate (% of boxes)",
                "badly_placed": "Badly placed (% of boxes)",
                "background": "Background (% of boxes)",
                "missed": "Missed (% of objects)",
            },
        ),
        MetricSpec(
            name="segments",
            summary="masks against the true objects' pixels: ARI on the foreground, mean best overlap, COCO's mask AP",
            target="objbench_plugins.metrics.segments:segments",
            weighted="objbench_plugins.metrics.segments:segments_weighted",
            more={"fg_ari": "FG-ARI (%)", "mbo": "mBO (%)", "mask_ap": "Mask AP (%)"},
        ),
        MetricSpec(
            name="ap50_gmair",
            summary="AP as GMAIR's published script computes it, faults included; not comparable with ap50",
            target="objbench_plugins.metrics.detection:ap50_gmair",
        ),
    ]
