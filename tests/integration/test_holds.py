"""Holds and lanes on a real Redis: jobs whose provider is not asked wait aside, in order, and all others pass them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.hold import ProviderReport, ProviderState
from pipeline.queue.job import Finish, Mode, Job, NewJob, Outcome
from pipeline.queue.queue import JobQueue
from tests.workers import Claimer as OneStep

LANES = {"sneaker": ("acme",), "boots": ("acme",), "lego": ("acme", "other"), "": ("other",)}
DAY_MS = 86_400_000
BASE = "pipeline:{ai-processing}:"


@pytest.fixture
def queue(io_loop: IOLoop, redis_url: str) -> Iterator[JobQueue]:
    queue = JobQueue(redis_url, lanes=LANES)
    yield queue
    io_loop.run_sync(queue.close)


class Claimer(OneStep):
    """Goes on while it is told that there is more."""

    async def __call__(self, free: int = 1, *finishes: Finish, **told: Any) -> list[Job]:
        step = await self.step(free, *finishes, **told)
        claimed: list[Job] = step.claimed
        while step.has_more and len(claimed) < free:
            step = await self.step(free - len(claimed))
            claimed += step.claimed
        return claimed


async def enqueue(queue: JobQueue, lane: str, *numbers: int, group: str = "") -> list[str]:
    ids = [f"ai-processing:{number:024x}" for number in numbers]
    for job_id in ids:
        assert await queue.enqueue(job_id, {}, lane=lane, group=group)
    return ids


def ids_of(jobs: Sequence[Job]) -> list[str]:
    return [job.id for job in jobs]


def parked(job: Job) -> Finish:
    return Finish(job, Outcome.PARKED, refunds_attempt=True, error="AI service unavailable")


def away(provider: str = "acme") -> ProviderReport:
    """One that could not be asked: single jobs try it."""
    return ProviderReport(provider, ProviderState.AWAY, 15, "AI service unavailable", "ConnectionRefusedError: no")


def still_away(provider: str = "acme") -> ProviderReport:
    return away(provider)._replace(state=ProviderState.TRIED)


def busy(seconds: float, provider: str = "acme") -> ProviderReport:
    return ProviderReport(provider, ProviderState.BUSY, seconds, "AI service is busy", "HTTP 429")


@pytest.mark.fault("E6")
@pytest.mark.gen_test
async def test_jobs_of_other_lanes_pass_those_of_a_held_provider(queue: JobQueue) -> None:
    """Only jobs all of whose providers are held wait; they hold no slot, lose no attempt and keep their order."""
    sneakers = await enqueue(queue, "sneaker", *range(1, 6))
    claim = Claimer(queue)
    (first,) = await claim(1)
    cameras = await enqueue(queue, "camera", 11, 12)
    legos = await enqueue(queue, "lego", 21)
    assert ids_of(await claim(5, parked(first), reports=[busy(8)])) == cameras + legos
    assert await claim(5) == []
    stats = await queue.stats()
    assert (stats.waiting, stats.active, stats.oldest_ready_seconds) == (5, 3, None)
    assert [(hold.provider, hold.reason) for hold in stats.holds] == [("acme", "AI service is busy")]
    assert 7 < stats.holds[0].left_seconds <= 8
    assert await queue.backlog() == 5
    queue.clock_offset_ms += 8001
    jobs = await claim(5)
    assert ids_of(jobs) == sneakers
    assert {job.attempt for job in jobs} == {1} and not (await queue.stats()).holds


@pytest.mark.gen_test
async def test_lane_stays_open_while_one_of_its_providers_may_be_asked(queue: JobQueue) -> None:
    """A chain is closed only when all of it is held; a lane nobody named is that of all others."""
    legos, strange = await enqueue(queue, "lego", 1), await enqueue(queue, "shoe box", 2)
    claim = Claimer(queue)
    step = await claim.step(0, reports=[busy(30, "other")])
    assert ids_of(await claim(5)) == legos
    await enqueue(queue, "lego", 3)
    assert await claim(5, reports=[busy(10)]) == []
    assert [hold.provider for hold in sorted(step.holds)] == ["other"]
    queue.clock_offset_ms += 10_001
    assert ids_of(await claim(5)) == [f"ai-processing:{3:024x}"]
    queue.clock_offset_ms += 20_001
    assert ids_of(await claim(5)) == strange


@pytest.mark.gen_test
async def test_single_jobs_try_a_provider_that_could_not_be_asked(queue: JobQueue) -> None:
    """One at a time, over all processes, each time another; with an answer all go on at once."""
    ids = await enqueue(queue, "sneaker", *range(1, 8))
    one, other = Claimer(queue), Claimer(queue, "worker-b")
    (first,) = await one(1)
    step = await one.step(5, parked(first), reports=[away()])
    assert step.claimed == [] and 900 < step.next_due_ms <= 1000
    queue.clock_offset_ms += 1001
    (trying,) = await other(5)
    assert (trying.id, trying.tries, trying.attempt) == (ids[1], "acme", 1)
    assert await one(5) == []
    step = await other.step(5, parked(trying), reports=[still_away()])
    assert step.claimed == [] and 1900 < step.next_due_ms <= 2000
    queue.clock_offset_ms += 2001
    (trying,) = await one(5)
    assert trying.id == ids[2]
    step = await one.step(
        5, Finish(trying, Outcome.COMPLETED), reports=[ProviderReport("acme", ProviderState.ANSWERED)]
    )
    assert ids_of(step.claimed) == [*ids[:2], *ids[3:6]] and step.holds == [] and not step.claimed[0].tries


@pytest.mark.gen_test
async def test_job_that_tries_and_dies_is_followed_by_another(queue: JobQueue) -> None:
    """Nobody hears of the first one again; after the same wait the next one tries."""
    await enqueue(queue, "sneaker", 1, 2)
    claim = Claimer(queue)
    await claim.step(0, reports=[away()])
    for number in (1, 2):
        queue.clock_offset_ms += 1001
        (trying,) = await claim(5)
        assert (trying.id, trying.tries) == (f"ai-processing:{number:024x}", "acme")


@pytest.mark.gen_test
async def test_job_whose_own_fault_it_is_does_not_keep_the_others_waiting(queue: JobQueue) -> None:
    """The first of the line makes its provider unreachable each time: another one tries it next, and finds it there."""
    ids = await enqueue(queue, "sneaker", *range(1, 4))
    claim = Claimer(queue)
    for _ in range(2):
        (bad,) = await claim(1)
        assert await claim(5, parked(bad), reports=[away()]) == []
        queue.clock_offset_ms += 1001
        (trying,) = await claim(5)
        assert (bad.id, trying.tries) == (ids[0], "acme") and trying.id != bad.id
        await claim.step(0, Finish(trying, Outcome.COMPLETED), reports=[ProviderReport("acme", ProviderState.ANSWERED)])
    assert (await queue.stats()).completed == 2


@pytest.mark.fault("E1")
@pytest.mark.gen_test
async def test_each_job_has_its_turn_to_try(queue: JobQueue) -> None:
    """However many in front make it unreachable, and in whichever lane, one that would find it there gets its try."""
    ids = {*await enqueue(queue, "sneaker", *range(1, 9)), *await enqueue(queue, "boots", *range(11, 19))}
    claim = Claimer(queue)
    await claim.step(0, reports=[away()])
    queue.clock_offset_ms += 1001
    tried = set()
    (trying,) = await claim(5)
    for _ in range(len(ids) + 1):  # the very first did not go by turns
        tried.add(trying.id)
        assert await claim(5, parked(trying), reports=[still_away()]) == []
        queue.clock_offset_ms += 15_001
        (trying,) = await claim(5)
    assert tried == ids


@pytest.mark.gen_test
async def test_job_that_comes_while_nobody_waits_tries_the_provider(queue: JobQueue) -> None:
    """A provider that was away an hour ago is not taken for away for ever."""
    claim = Claimer(queue)
    await claim.step(0, reports=[away()])
    queue.clock_offset_ms += 3_600_000
    ids = await enqueue(queue, "sneaker", 1, 2)
    (trying,) = await claim(5)
    assert (trying.id, trying.tries) == (ids[0], "acme")


@pytest.mark.gen_test
async def test_hold_is_no_longer_than_ten_minutes(queue: JobQueue) -> None:
    """However long a service asks for, and after a clock that was set back."""
    ids = await enqueue(queue, "sneaker", 1)
    claim = Claimer(queue)
    await claim.step(0, reports=[busy(86_400)])
    queue.clock_offset_ms += 600_100
    assert ids_of(await claim(1)) == ids
    await enqueue(queue, "sneaker", 2)
    await claim.step(0, reports=[busy(600)])
    queue.clock_offset_ms -= 3_600_000
    await claim.step(0)
    queue.clock_offset_ms += 600_100
    assert len(await claim(1)) == 1


@pytest.mark.gen_test
async def test_longer_of_two_waits_stands(queue: JobQueue) -> None:
    """Of calls that were under way together one was told 10 s and the next 1 s."""
    claim = Claimer(queue)
    await claim.step(0, reports=[busy(10)])
    (hold,) = (await claim.step(0, reports=[busy(1)])).holds
    assert 9 < hold.left_seconds <= 10


@pytest.mark.gen_test
async def test_parked_jobs_wake_nobody(queue: JobQueue, redis: Redis) -> None:
    """While only parked jobs wait there is no marker for idle workers to spin on; when the hold ends there is one."""
    await enqueue(queue, "sneaker", 1, 2, 3)
    claim = Claimer(queue)
    redis.delete(BASE + "wake")
    await claim.step(5, reports=[busy(1)])
    assert not redis.exists(BASE + "wake")
    queue.clock_offset_ms += 1001
    await claim(1)
    assert redis.llen(BASE + "wake") == 1


@pytest.mark.fault("E8")
@pytest.mark.gen_test
async def test_parked_job_that_is_too_old_is_claimed_all_the_same(queue: JobQueue) -> None:
    """So that its worker can end it: also one that was lost and restored since. Younger ones go on waiting."""
    now_ms = 1_795_000_000_000
    old = NewJob(f"ai-processing:{1:024x}", {}, lane="sneaker", submitted_at_ms=now_ms)
    assert await queue.restore([old]) == 1
    ids = await enqueue(queue, "sneaker", 2, 3)
    claim = Claimer(queue)
    assert (await claim.step(5, reports=[busy(600)])).next_due_ms == 0
    (claimed,) = await claim(5)
    assert (claimed.id, claimed.submitted_at_ms, claimed.tries) == (old.id, now_ms, "")
    assert await claim(5) == []
    assert (await claim.step(1)).next_due_ms <= 600_000
    assert (await claim.step(0)).next_due_ms is None  # without a free slot there is no use in coming back
    queue.clock_offset_ms += DAY_MS - 1000
    step = await claim.step(5, reports=[busy(600)])
    assert step.claimed == [] and 0 < step.next_due_ms <= 1000
    queue.clock_offset_ms += 1001
    assert ids_of(await claim(5)) == ids


@pytest.mark.gen_test
async def test_restore_leaves_parked_jobs_where_they_are(queue: JobQueue, redis: Redis) -> None:
    """The reconciler finds them in their place; after a wipe they come back, and the hold is found anew."""
    jobs = [NewJob(f"ai-processing:{number:024x}", {}, lane="sneaker") for number in range(1, 4)]
    assert await queue.restore(jobs) == 3
    claim = Claimer(queue)
    await claim.step(5, reports=[busy(30)])
    assert await queue.restore(jobs) == 0
    redis.delete(BASE + "parked")
    assert await queue.restore(jobs) == 3
    await claim.step(5)
    assert (await queue.stats()).waiting == 3
    redis.flushall()
    assert await queue.restore(jobs) == 3
    assert len(await claim(5)) == 3


@pytest.mark.gen_test
async def test_process_that_asks_another_provider_takes_the_parked_jobs(redis_url: str, queue: JobQueue) -> None:
    """While a fleet changes its AI_PROVIDER each process goes by its own."""
    ids = await enqueue(queue, "sneaker", 1, 2)
    assert await Claimer(queue)(5, reports=[busy(30)]) == []
    changed = JobQueue(redis_url, lanes={"": ("new",)})
    assert ids_of(await Claimer(changed, "worker-b")(5)) == ids
    await changed.close()


@pytest.mark.gen_test
async def test_users_take_turns_again_after_a_hold(queue: JobQueue) -> None:
    """A thousand parked jobs of one user do not come out before the first of another."""
    many = await enqueue(queue, "sneaker", *range(1, 301), group="anna")
    few = await enqueue(queue, "sneaker", 1001, group="ben")
    claim = Claimer(queue)
    assert await claim(5, reports=[busy(1)]) == []
    assert (await queue.stats()).waiting == 301
    queue.clock_offset_ms += 1001
    for _ in range(4):
        await claim.step(0)
    claimed = await claim(4)
    assert set(ids_of(claimed)) == {*many[:3], *few}
    assert await queue.backlog() == 297


@pytest.mark.gen_test
async def test_paused_queue_parks_and_claims_nothing(queue: JobQueue) -> None:
    """A pause is a person's decision: not even a job that would try the provider is claimed."""
    await enqueue(queue, "sneaker", 1)
    claim = Claimer(queue)
    await claim.step(5, reports=[away()])
    await queue.pause()
    queue.clock_offset_ms += DAY_MS + 1000
    step = await claim.step(5)
    assert step.claimed == [] and step.mode is Mode.PAUSED
    await queue.resume()
    assert len(await claim(5)) == 1


@pytest.mark.fault("E6")
@pytest.mark.gen_test(timeout=60)
async def test_ten_thousand_parked_jobs_delay_a_good_one_by_a_few_steps(queue: JobQueue) -> None:
    """They are put aside a thousand at a time, inside Redis; after that they cost nothing at all."""
    jobs = [NewJob(f"ai-processing:{number:024x}", {}, lane="sneaker") for number in range(1, 10_001)]
    await queue.restore(jobs)
    good = await enqueue(queue, "camera", 20_000)
    claim = Claimer(queue)
    assert ids_of(await claim(5, reports=[busy(30)])) == good
    assert claim.steps <= 12
    step = await claim.step(5)
    assert step.claimed == [] and not step.has_more and (await queue.stats()).waiting == 10_000


@pytest.mark.gen_test
async def test_waits_between_jobs_that_try_double_up_to_the_longest(queue: JobQueue) -> None:
    """1, 2, 4, 8, 15, 15 seconds; what other calls find meanwhile changes nothing, an answer begins anew."""
    await enqueue(queue, "sneaker", *range(1, 20))
    claim = Claimer(queue)
    (job,) = await claim(1)
    await claim.step(0, parked(job), reports=[away()])
    for seconds in (1, 2, 4, 8, 15, 15):
        step = await claim.step(5, reports=[away()])
        assert step.claimed == [] and (seconds - 0.1) * 1000 < step.next_due_ms <= seconds * 1000
        queue.clock_offset_ms += seconds * 1000
        (trying,) = await claim(5)
        await claim.step(0, parked(trying), reports=[still_away()])
    await claim.step(0, reports=[ProviderReport("acme", ProviderState.ANSWERED)])
    (hold,) = (await claim.step(0, reports=[away()])).holds
    assert (hold.wait_seconds, hold.reason, hold.cause) == (1, "AI service unavailable", "ConnectionRefusedError: no")


@pytest.mark.gen_test
async def test_answer_ends_no_wait_that_was_asked_for(queue: JobQueue) -> None:
    """Of calls under way together one has an answer after another was told to wait."""
    claim = Claimer(queue)
    await claim.step(0, reports=[busy(10)])
    (hold,) = (await claim.step(0, reports=[ProviderReport("acme", ProviderState.ANSWERED), away()])).holds
    assert hold.wait_seconds == 0 and 9 < hold.left_seconds <= 10


@pytest.mark.gen_test
async def test_provider_that_asks_to_wait_is_there(queue: JobQueue) -> None:
    """One that could not be asked and then says 429 is asked by all after that time, not by single jobs."""
    ids = await enqueue(queue, "sneaker", *range(1, 4))
    claim = Claimer(queue)
    await claim.step(0, reports=[away()])
    queue.clock_offset_ms += 1001
    (trying,) = await claim(5)
    await claim.step(0, parked(trying), reports=[busy(3)])
    queue.clock_offset_ms += 3001
    assert ids_of(await claim(5)) == ids


@pytest.mark.gen_test
async def test_held_provider_with_another_to_go_to_is_tried_by_single_jobs(queue: JobQueue) -> None:
    """The lane stays open; one of its jobs at a time is told to ask the first provider again."""
    await enqueue(queue, "lego", *range(1, 9))
    claim = Claimer(queue)
    assert [job.tries for job in await claim(2, reports=[away()])] == ["", ""]
    queue.clock_offset_ms += 1001
    assert [job.tries for job in await claim(3)] == ["acme", "", ""]
    assert [job.tries for job in await claim(1)] == [""]


@pytest.mark.gen_test
async def test_worker_leaves_jobs_that_it_alone_cannot_do_to_others(queue: JobQueue) -> None:
    """They stay at the front, in order, until another worker takes them, also when one is to try the provider."""
    ids = await enqueue(queue, "sneaker", 1, 2)
    cameras = await enqueue(queue, "camera", 11)
    broken, good = Claimer(queue, "broken"), Claimer(queue, "good")
    step = await broken.step(5, avoided=["sneaker"])
    assert ids_of(step.claimed) == cameras and not step.has_more
    assert ids_of(await good(2)) == ids
    again = await enqueue(queue, "sneaker", 3)
    assert await broken(5, avoided=["sneaker", ""], reports=[away()]) == []
    queue.clock_offset_ms += 1001
    step = await broken.step(5, avoided=["sneaker"])
    assert step.claimed == [] and step.next_due_ms > 1000
    (trying,) = await good(5)
    assert (trying.id, trying.tries) == (again[0], "acme")
