"""The GPU's benchmark of views, tried out on the CPU."""

import csv

from benchmarks.gpu import time_views


def test_every_job_and_provider_has_a_row_that_says_how_it_was_measured(tmp_path):
    output = tmp_path / "views.csv"
    time_views.main(["--device", "cpu", "--small", "--output", str(output)])
    with output.open() as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["provider"].startswith("ssl_fast")]
    assert {(row["job"], row["provider"]) for row in ours} == {
        (job, name) for job in time_views.SMALL for name in time_views.PROVIDERS if name.startswith("ssl_fast")
    }
    for row in rows:
        assert float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        rate = 1e3 * int(row["views"]) / float(row["p50_ms"])
        assert abs(float(row["views_per_second"]) / rate - 1) < 0.01
        assert row["hardware"] and row["commit"] and row["device"] == "cpu"
    for row in ours:
        assert float(row["largest_levels"]) < (0.6 if row["dtype"] == "bfloat16" else 1e-6)
    assert [int(row["views"]) for row in ours if row["job"] == "swav"] == [16, 16, 16]


def test_no_job_is_begun_after_the_time(tmp_path):
    output = tmp_path / "views.csv"
    time_views.main(["--device", "cpu", "--small", "--seconds", "-1", "--output", str(output)])
    assert not output.exists()


def test_bytes_are_those_of_crops_and_views():
    job = time_views.SMALL["simclr 32 px"]
    images = time_views.pictures(4, 32, 32, "cpu")
    views = time_views.views_of(job)
    table = time_views.table_of(views, images)
    crops = sum(3 * int(row[2]) * int(row[3]) for row in table.flatten(0, -2))
    assert time_views.bytes_of(job, images, time_views.torch.bfloat16) == crops + 8 * 3 * 32 * 32 * 2
