"""Services as lines: what was written comes back, and only what is looked at is decoded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp import stored
from lvsxdp.book import BackendPlace, ServicePlace
from lvsxdp.model import Config, Service
from tests.unit.strategies import CONFIGS


def placed(service: Service, number: int) -> ServicePlace:
    """Some place for a service."""
    names = enumerate(map(str, service.backends), number)
    backends = {name: BackendPlace(identity, identity % 7 + 1) for identity, name in names}
    return ServicePlace(number, 3, 2 * number, 5, len(backends), number or None, backends)


@settings(max_examples=50, deadline=None)
@given(drawn=CONFIGS, source=st.one_of(st.none(), st.text("0123456789abcdef", min_size=1)))
def test_what_was_written_comes_back_also_when_it_is_written_again(
    drawn: Config, source: str | None
) -> None:
    for number, service in enumerate(drawn.services):
        place = placed(service, number)
        line = stored.encode(service, place, source)
        assert b"\n" not in line
        again, at, by = stored.decode(line)
        # unread, it is written as it came
        assert stored.encode(again, at, by) == line
        assert (again, at, by) == (service, place, source)
        assert (hash(again), repr(again.backends)) == (hash(service), repr(service.backends))
        assert stored.encode(again, at, by) == line


def test_a_line_that_nobody_looks_into_is_not_decoded() -> None:
    """Even where it could not be."""
    service, place, _ = stored.decode(
        b'[[["mark",7,"ipv4"],null,"rr",[],null,false,false],3,["dr"],[1,2,3,4,5,null,0,0],null]\tX'
    )
    assert (str(service), len(service.backends), len(place.backends)) == ("mark:7", 3, 3)
    assert stored.encode(service, place, None).endswith(b"\tX")
