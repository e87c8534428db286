"""What is measured of the fence is what is said; how fast it is depends on the machine and is not tested."""

from __future__ import annotations

from dataclasses import asdict

from lockguard_lab.bench.fence_speed import Ratio, measure_history, measure_speed
from lockguard_lab.bench.fence_speed_command import drawn
from lockguard_lab.servers import PostgresServer


async def test_the_fence_is_measured_beside_the_others_in_one_run(database_url: str, redis_url: str) -> None:
    speed = await measure_speed(database_url, redis_url, where="here", rounds=1, calls=2, durable=True)
    assert min((*speed.us.values(), *speed.hot_per_s.values())) > 0
    bare, native = speed.us["bare write"], speed.us["native write"]
    assert speed.ratios["native / bare"] == Ratio(round(native / bare, 2), 1.4)
    assert sum(ratio.aim is not None for ratio in speed.ratios.values()) == 5
    assert len(speed.us) == 16
    drawing = drawn([speed])
    assert all(name.split(",")[0] in drawing for name in asdict(speed)["us"])


async def test_a_hold_is_measured_after_earlier_writes_under_its_resource_and_under_another(
    postgres_server: PostgresServer, redis_url: str
) -> None:
    urls = {count: postgres_server.create_database(f"history_{count}") for count in (0, 20)}
    try:
        speed = await measure_history(urls, redis_url, where="here", rounds=1, calls=2)
    finally:
        for count in urls:
            postgres_server.drop_database(f"history_{count}")
    assert list(speed.ratios) == [
        f"hold with a write after 20{where} / after 0" for where in ("", " elsewhere")
    ]
    assert min(speed.us.values()) > 0


def test_a_ratio_says_whether_its_aim_was_met() -> None:
    assert [Ratio(1.2, aim).verdict for aim in (None, 1.2, 1.1)] == ["", "met", "missed"]
