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


def test_a_lock_on_a_file_that_was_removed_keeps_nobody_out(tmp_path, monkeypatch):
    """The holder removes the file when it ends: whoever had opened it before locked what no third one would see."""
    path = tmp_path / ".lock"
    opened = type(path).open

    def open_then_removed(self, mode="r"):
        handle = opened(self, mode)
        monkeypatch.setattr(type(path), "open", opened)
        self.unlink()
        return handle

    monkeypatch.setattr(type(path), "open", open_then_removed)
    held = try_lock(path, patience=1)
    assert held is not None and path.exists() and try_lock(path) is None
    held.close()
