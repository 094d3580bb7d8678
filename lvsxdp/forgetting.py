"""Removed backends are kept until nothing has referred to them for two minutes, as under IPVS."""

from __future__ import annotations

from lvsxdp import backup, entries
from lvsxdp.book import Book
from lvsxdp.controller import TABLES, Balancer
from lvsxdp.entries import Wanted


def look(balancer: Balancer, book: Book) -> bool:
    """Has the book forget what nothing refers to any more; whether it is another than before."""
    if not book.removed:
        return False
    now = balancer.clock()
    wanted = Wanted(backends=frozenset(gone.reference for _, _, gone in book.parted()))
    referred, settings = set[int](), balancer.state.config.settings
    for table in TABLES:
        memory = balancer.map(table).memory()
        referred |= entries.referred(balancer.schema, settings, table, memory, now, wanted)
    return book.forget_idle(referred, now // balancer.schema.hz)


def look_and_keep(balancer: Balancer) -> None:
    """Does so with the book on record."""
    if look(balancer, balancer.state.book):
        backup.put_on_record(balancer.where, balancer.state)
