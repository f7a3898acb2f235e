"""Catalogue of the data sets: origin, licence, citation and checksum. Only Adult may be redistributed."""

from __future__ import annotations

from manyheads.lab.data.collection import Collection
from manyheads.lab.data.registry import Dataset, Known, Origin

_GITHUB = "https://raw.githubusercontent.com"
_FRAPPE = (
    "L. Baltrunas, K. Church, A. Karatzoglou, N. Oliver, Frappe: Understanding the Usage and Perception of Mobile App "
    "Recommendations In-The-Wild, 1505.03014"
)
_FRAPPE_TERMS = "research only, no redistribution, no commercial use"
_RECBOLE = (
    "https://files.pythonhosted.org/packages/ab/fe/"
    "7d606cb7cd2b166a36b100cb9435d21014ceee16c192d972deb0976967a8/recbole-1.2.1-py3-none-any.whl"
)


def _published(part: str, rows: str, size: int, sha256: str) -> Dataset:
    return Dataset(
        name=f"frappe-{part}",
        domain="recsys",
        title=f"Frappe, the published {part} split, {rows} rows in libfm format",
        licence=_FRAPPE_TERMS,
        citation=f"{_FRAPPE}; split: X. He and T. Chua, Neural Factorization Machines, SIGIR 2017",
        bytes=size,
        sha256=sha256,
        local=f"rec/frappe/frappe.{part}.libfm.xz",
        origins=(
            Origin("url", f"{_GITHUB}/hexiangnan/neural_factorization_machine/master/data/frappe/frappe.{part}.libfm"),
        ),
    )


ADULT = Dataset(
    name="adult",
    domain="recsys",
    title="Adult census, 48,842 people, 14 columns, income above 50,000 dollars a year",
    licence="CC BY 4.0",
    citation="B. Becker, R. Kohavi, Adult, UCI Machine Learning Repository, 1996, doi:10.24432/C5XW20",
    bytes=5277527,
    sha256="2a974e047fea771e7c773b66db2ec9e3403d68b33c9532e26e714d42610dae20",
    local="rec/adult/adult.csv.xz",
    origins=(Origin("shipped", "manyheads.recsys:datasets/adult.csv.xz"),),
    aliases=("census",),
)

FRAPPE = Dataset(
    name="frappe",
    domain="recsys",
    title="Frappe, the raw archive: 96,203 app uses of 957 users with their contexts",
    licence=_FRAPPE_TERMS,
    citation=_FRAPPE,
    bytes=3372404,
    sha256="4adc616de57170f282397f6e6e30215f97fa7ad1b7f40bd12ef5dceaaf3e9b4e",
    local="rec/frappe/Mobile_Frappe.zip",
    origins=(Origin("url", f"{_GITHUB}/irecsys/CARSKit/master/context-aware_data_sets/Mobile_Frappe.zip"),),
)

FRAPPE_VALIDATION = _published(
    "validation", "57,722", 4163044, "fdf4be563a7dd9b15f7a6e8b32671e90e6e7a2a2bd3af4e10bf13c5ad7e76e9e"
)
FRAPPE_TEST = _published("test", "28,860", 2081389, "a2ebaef3a9af8e55f8bb0d08bc4923965e42e43760ebd7635ac2f8c5db99e097")

MOVIELENS = Collection(
    name="ml-100k",
    domain="recsys",
    title="MovieLens-100K: 100,000 ratings of 1,682 films by 943 users, as atomic files",
    licence="GroupLens: no redistribution, no commercial use",
    citation="F. M. Harper, J. A. Konstan, The MovieLens Datasets: History and Context, TiiS 5(4), 2015",
    bytes=2068559,
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    local="rec/ml100k",
    manifest="manyheads.recsys:datasets/ml-100k.csv",
    landmark="ml-100k.inter",
    origins=(
        Origin(
            "url",
            _RECBOLE,
            sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            member="recbole/dataset_example/ml-100k",
        ),
        Origin(
            "manual", "put ml-100k.inter, .item and .user of RecBole's atomic files into $MANYHEADS_DATA/rec/ml100k"
        ),
    ),
    aliases=("movielens", "ml100k"),
)

datasets: tuple[Known, ...] = (ADULT, FRAPPE, FRAPPE_VALIDATION, FRAPPE_TEST, MOVIELENS)
