"""What is measured of the fence is what is said; how fast it is depends on the machine and is not tested."""

from __future__ import annotations

from dataclasses import asdict

from lockguard_asyncpg.speed import measure_speed
from lockguard_asyncpg.speed_command import drawn


async def test_the_fence_is_measured_beside_the_others_in_one_run(database_url: str, redis_url: str) -> None:
    speed = await measure_speed(database_url, redis_url, where="here", rounds=1, calls=2, history=20)
    assert set(speed.after) == {0, 2, 20}
    assert min((*speed.us.values(), *speed.hot_per_s.values(), *speed.after.values())) > 0
    bare, native = speed.us["bare write"], speed.us["native write"]
    assert speed.ratios["native / bare"] == round(native / bare, 2)
    assert len(speed.us) == 13
    drawing = drawn([speed])
    assert all(name.split(",")[0] in drawing for name in asdict(speed)["us"])
