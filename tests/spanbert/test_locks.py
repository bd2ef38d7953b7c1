"""A lock is held by one open file at a time."""

from __future__ import annotations

from spanbert.locks import is_locked, try_lock


def test_the_second_waits_or_gets_nothing(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    assert not is_locked(path) and not path.exists()
    held = try_lock(path)
    assert held is not None and is_locked(path) and try_lock(path) is None
    waited = []
    monkeypatch.setattr("spanbert.locks.time.sleep", lambda seconds: (waited.append(seconds), held.close()))
    second = try_lock(path, patience=3)
    assert second is not None and waited == [1]
    second.close()
    assert not is_locked(path)
