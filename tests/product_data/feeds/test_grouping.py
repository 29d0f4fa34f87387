"""The index of a feed on disk."""

import errno

import pytest

from product_data.feeds.grouping import FeedIndex


def test_a_full_disk_of_temporary_files_is_an_error_of_the_disk():
    index = FeedIndex()
    index._database.execute("PRAGMA max_page_count = 10")
    with pytest.raises(OSError, match="the disk of temporary files is full") as raised:
        index.add_texts((f"product {number}", {"title": "x" * 5000}) for number in range(100))
    assert raised.value.errno == errno.ENOSPC
    index.close()
