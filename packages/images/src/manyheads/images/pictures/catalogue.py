"""The data sets of images."""

from __future__ import annotations

from manyheads.lab.data.registry import Dataset, Origin

DIGITS = Dataset(
    name="digits",
    domain="images",
    title="Optical recognition of handwritten digits: 1,797 grey images of 8 x 8 pixels, 10 classes",
    licence="CC BY 4.0",
    citation="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi:10.24432/C50P49",
    bytes=264712,
    sha256="6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
    local="digits.csv",
    origins=(Origin("shipped", "sklearn.datasets:data/digits.csv.gz"),),
)

datasets = (DIGITS,)
