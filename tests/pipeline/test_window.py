from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_runner.pipeline.window import Window


async def test_room_is_taken_at_once() -> None:
    window = Window(max_frames=3, max_bytes=10)
    for size in (4, 4, 2):
        await window.admit(size)


async def test_the_frame_bound_waits_for_a_stored_frame(autojump_clock: MockClock) -> None:
    window = Window(max_frames=2, max_bytes=1_000)
    await window.admit(1)
    await window.admit(1)
    admitted = trio.Event()

    async def third() -> None:
        await window.admit(1)
        admitted.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(third)
        await wait_all_tasks_blocked()
        # An answer gives back bytes, but the frame still waits to be stored.
        window.release_bytes(1)
        await wait_all_tasks_blocked()
        assert not admitted.is_set()
        window.release_frames(1)
        await wait_all_tasks_blocked()
        assert admitted.is_set()


async def test_the_byte_bound_waits_for_an_answer(autojump_clock: MockClock) -> None:
    window = Window(max_frames=100, max_bytes=10)
    await window.admit(6)
    admitted = trio.Event()

    async def second() -> None:
        await window.admit(5)
        admitted.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await wait_all_tasks_blocked()
        assert not admitted.is_set()
        window.release_bytes(6)
        await wait_all_tasks_blocked()
        assert admitted.is_set()


async def test_a_frame_larger_than_the_byte_bound_goes_alone(autojump_clock: MockClock) -> None:
    window = Window(max_frames=100, max_bytes=10)
    await window.admit(1_000)
    with trio.move_on_after(1) as scope:
        await window.admit(1)
    assert scope.cancelled_caught
    window.release_bytes(1_000)
    await window.admit(1)


async def test_who_was_cancelled_while_waiting_was_not_counted(autojump_clock: MockClock) -> None:
    window = Window(max_frames=1, max_bytes=10)
    await window.admit(1)
    with trio.move_on_after(1):
        await window.admit(1)
    window.release_bytes(1)
    window.release_frames(1)
    with trio.fail_after(1):
        await window.admit(10)


@given(
    st.lists(st.integers(1, 30), max_size=40),
    st.integers(1, 5),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_neither_bound_is_ever_exceeded_and_everything_gets_through(
    sizes: list[int], max_frames: int, max_bytes: int, random: object
) -> None:
    window = Window(max_frames=max_frames, max_bytes=max_bytes)
    unanswered: list[int] = []
    unstored = 0

    async def admit_all() -> None:
        nonlocal unstored
        for size in sizes:
            await window.admit(size)
            unanswered.append(size)
            unstored += 1
            assert unstored <= max_frames
            assert sum(unanswered) <= max_bytes or len(unanswered) == 1

    async def main() -> None:
        nonlocal unstored
        stored = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(admit_all)
            while stored < len(sizes):
                await wait_all_tasks_blocked()
                # Whatever is under way is answered in any order, and stored after its answer.
                if unanswered and random.random() < 0.7:  # type: ignore[attr-defined]
                    window.release_bytes(unanswered.pop(random.randrange(len(unanswered))))  # type: ignore[attr-defined]
                elif storable := unstored - len(unanswered):
                    unstored -= storable
                    stored += storable
                    window.release_frames(storable)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert (unstored, unanswered) == (0, [])
