"""Where checkpoints live. ``open_storage`` picks by the look of the location."""

from pathlib import Path

from get3d_cluster.storage.base import Storage


def open_storage(location: str | Path) -> Storage:
    """Return the storage for a folder, or for a URL such as ``s3://bucket/run``."""
    if "://" in str(location):
        from get3d_cluster.storage.remote import RemoteStorage

        return RemoteStorage(str(location))
    from get3d_cluster.storage.local import LocalStorage

    return LocalStorage(Path(location))
