"""Least recently used first out, never one in use."""

from datetime import UTC, datetime

import torch

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import StoredAdapter
from memory_service.services.adapter_cache import AdapterCache, AdapterKey
from tests.helpers.fakes import FINGERPRINT


def adapter(name: str, version: int = 1) -> tuple[AdapterKey, StoredAdapter]:
    made = StoredAdapter(
        version=version,
        fingerprint=FINGERPRINT,
        reason="append",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        state_digest=f"{name}{version}",
        chunks=1,
        turns=1,
        size_bytes=100,
        readouts=torch.zeros(25),
    )
    return AdapterKey.of(MemoryId(name), made), made


def use(cache: AdapterCache, name: str) -> None:
    key, made = adapter(name)
    with cache.held(key, cache.find(key) or made):
        pass


def kept(cache: AdapterCache, *names: str) -> list[str]:
    return [name for name in names if cache.find(adapter(name)[0]) is not None]


def test_the_least_recently_used_goes_first():
    cache = AdapterCache(most_bytes=250)
    for name in ("ann", "bob", "ann", "eve"):
        use(cache, name)
    assert kept(cache, "ann", "bob", "eve") == ["ann", "eve"]
    assert cache.size_bytes == 200


def test_what_is_held_stays_and_goes_when_it_is_released():
    cache = AdapterCache(most_bytes=100)
    ann, bob = adapter("ann"), adapter("bob")
    with cache.held(*ann):
        with cache.held(*bob):
            assert cache.size_bytes == 200
        assert kept(cache, "ann", "bob") == ["ann"]
        with cache.held(*ann):
            pass
        assert kept(cache, "ann") == ["ann"]
    assert cache.size_bytes == 100


def test_a_cache_of_no_bytes_keeps_nothing():
    cache = AdapterCache(most_bytes=0)
    use(cache, "ann")
    assert kept(cache, "ann") == []
    assert cache.size_bytes == 0


def test_forgetting_lets_go_of_what_is_held_too():
    cache = AdapterCache()
    with cache.held(*adapter("ann")), cache.held(*adapter("ann", 2)), cache.held(*adapter("bob")):
        cache.forget(MemoryId("ann"))
        assert kept(cache, "ann", "bob") == ["bob"]
    assert cache.size_bytes == 100
