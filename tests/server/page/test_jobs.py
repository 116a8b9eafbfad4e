"""How fast batches go, and what is left of them."""

from __future__ import annotations

from seesaw.server.batches.job import Job
from seesaw.server.batches.objects import Batch, BatchError, RequestCounts, Status
from seesaw.server.page.jobs import MAX_JOBS, Paces


def make_job(number: int, total: int, status: Status = "in_progress") -> Job:
    batch = Batch(
        id=f"batch_{number}",
        endpoint="/v1/completions",
        input_file_id="file",
        completion_window="24h",
        status=status,
        created_at=0,
        expires_at=86400,
        request_counts=RequestCounts(total),
    )
    return Job(number, batch)


def test_pace_and_time_left() -> None:
    first, second, paces = make_job(1, 100), make_job(2, 50), Paces()
    paces.look([first, second], 10.0)
    assert [(each.rows_per_second, each.seconds_left) for each in paces.tell([first, second])] == [(0, None)] * 2
    first.change(request_counts=RequestCounts(100, 15, 5))
    paces.look([first, second], 14.0)
    told = paces.tell([first, second])
    # The second waits for the first: 80 rows are left of that, and then its own 50.
    assert [(each.rows_per_second, each.seconds_left) for each in told] == [(5.0, 16.0), (0.0, 26.0)]
    assert told[0].batch.request_counts == RequestCounts(100, 15, 5)


def test_a_job_that_has_ended_is_forgotten_and_one_that_is_being_checked_has_no_pace() -> None:
    running, checked, paces = make_job(1, 10), make_job(2, 0, "validating"), Paces()
    paces.look([running, checked], 1.0)
    paces.look([checked], 2.0)
    paces.look([running, checked], 3.0)
    assert [each.seconds_left for each in paces.tell([running, checked])] == [None, None]


def test_what_it_suffers_from_is_told() -> None:
    job, paces = make_job(1, 10), Paces()
    job.trouble = BatchError("no_space_left", "The disk is full.")
    [told] = paces.tell([job])
    assert told.batch.errors is not None and told.batch.errors.data == [job.trouble]


def test_of_many_jobs_the_first_are_told() -> None:
    jobs = [make_job(number, 10) for number in range(2 * MAX_JOBS)]
    paces = Paces()
    paces.look(jobs, 1.0)
    assert [each.batch.id for each in paces.tell(jobs)] == [f"batch_{number}" for number in range(MAX_JOBS)]
