"""docs/methods.md: every pretraining method has its row, in order, with differences that the tests allow."""

import re

from ssl_fast.config import classes_in
from tests.methods.pretrain.oracles import PAGE, TOLERANCE

PACKAGE = "ssl_fast.methods.pretrain"
ROWS = re.findall(r"^\| `(\w+)` \|(.*\.py` \|.*)\|$", PAGE.read_text(), re.M)


def test_every_method_has_a_row_and_rows_are_sorted() -> None:
    names = [name for name, _ in ROWS]
    assert names == sorted(classes_in(PACKAGE))


def test_rows_name_the_file_and_differences_within_the_tolerance() -> None:
    for name, rest in ROWS:
        paper, file, couples, beside, loss, gradient = (cell.strip() for cell in rest.split("|"))
        assert file == f"`{name}.py`" and paper.startswith("[") and couples and beside
        assert 0 <= float(loss) <= TOLERANCE and 0 <= float(gradient) <= TOLERANCE, name
