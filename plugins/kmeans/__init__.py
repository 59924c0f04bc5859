"""K-means on raw glimpses."""

from objbench import ClustererSpec, hookimpl


@hookimpl
def objbench_clusterers() -> list[ClustererSpec]:
    """The plainest clusterer of glimpses."""
    return [
        ClustererSpec(
            name="kmeans",
            label="k-means",
            summary="K-means on the pixels of glimpses",
            target="objbench_plugins.kmeans.model:KMeans",
            paper=(
                "S. Lloyd: Least Squares Quantization in PCM, IEEE Transactions on Information Theory, 1982; started "
                "as in D. Arthur, S. Vassilvitskii: k-means++, SODA 2007"
            ),
            code="https://github.com/scikit-learn/scikit-learn (KMeans)",
            licence="BSD-3-Clause",
            differs={"*": "Nothing: Lloyd's algorithm, started ten times (kmeans.starts) as in k-means++."},
            prior_knowledge="The number of clusters.",
        )
    ]
