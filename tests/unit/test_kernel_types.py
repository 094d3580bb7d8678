"""Fields of the kernel's structs are found where its own description has them."""

from __future__ import annotations

import pytest

from lvsxdp import kernel_types
from lvsxdp.errors import DatapathError


def test_fields_are_found_also_in_members_that_have_no_name() -> None:
    fields = [("list_head", "next"), ("list_head", "prev"), ("sk_buff", "dev")]
    assert kernel_types.offsets(fields) == [0, 8, 16]


@pytest.mark.parametrize("field", [("list_head", "nothing"), ("no_such_struct", "next")])
def test_a_field_that_is_not_there_is_named(field: tuple[str, str]) -> None:
    with pytest.raises(DatapathError, match=f"the kernel has no {field[0]}.{field[1]} "):
        kernel_types.offsets([field])
