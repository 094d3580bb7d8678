"""Which ids services and backends get: those that they have, those that they had, or free ones."""

from __future__ import annotations

import dataclasses
import functools

from lvsxdp.book import BackendPlace, Book, Numbers, Places, ServicePlace
from lvsxdp.model import Capacity, Service

# Of a backend's id: as many as its reference has bits for, and never 0.
GENERATIONS = 2**32 - 1


@dataclasses.dataclass
class Placing:
    """The ids that a change gives away; `book` forgets of what was removed what comes back."""

    book: Book
    taken: Places
    capacity: Capacity
    back: set[int] = dataclasses.field(default_factory=set)  # ids of backends that come back

    @functools.cached_property
    def _used(self) -> Numbers:
        """The ids that services have or had."""
        return Numbers((*self.taken.services.taken, *self.book.service_generations), "services")

    def service(self, key: str) -> tuple[int, bool]:
        """The id of a new service, and whether entries of a former one have to go first.

        That which this very service had, or one that none ever had, or else a former one's.
        """
        if key in self.book.removed:
            return self.book.removed[key].service, False
        capacity = self.capacity.services
        if len(self._used.taken) < capacity:
            identity = self._used.take(capacity)
            self.taken.services.taken.add(identity)
            return identity, False
        if len(self.taken.services.taken) >= capacity:
            self._give_up_service()
        return self.taken.services.take(capacity), True

    def _give_up_service(self) -> None:
        """Frees the id of a service that was removed and so will not come back as it was."""
        for key in self.taken.former:
            if key in self.book.removed:
                kept = self.book.removed.pop(key)
                self.taken.services.free(kept.service)
                for gone in kept.backends.values():
                    self.taken.backends.free(gone.id)
                return

    def backends(self, service: Service, old: ServicePlace | None) -> dict[str, BackendPlace]:
        """An id for each backend of a service that stood in `old`."""
        places: dict[str, BackendPlace] = {}
        key, known = str(service.key), old.backends if old else {}
        removed = self.book.removed.get(key)
        for backend in service.backends:
            name = str(backend)
            if name in known:
                places[name] = known[name]
            elif removed and name in removed.backends:
                gone = self.book.forget(key, name)
                places[name] = BackendPlace(gone.id, gone.generation)
                self.back.add(gone.id)
            else:
                places[name] = self._fresh_backend()
        return places

    def _fresh_backend(self) -> BackendPlace:
        """A free id with its next generation; where none is free, a removed backend's."""
        if len(self.taken.backends.taken) >= self.capacity.backends:
            self._give_up_backend()
        identity = self.taken.backends.take(self.capacity.backends)
        generations = self.book.backend_generations.change()
        generations[identity] = generations.get(identity, 0) % GENERATIONS + 1
        return BackendPlace(identity, generations[identity])

    def _give_up_backend(self) -> None:
        """Frees the id of a backend that was removed before this change."""
        for key, name, gone in self.book.parted():
            if gone.id in self.taken.parted:
                self.taken.backends.free(self.book.forget(key, name).id)
                return
