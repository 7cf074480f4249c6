"""What metrics would cost: asked through the agent, by the flows in its memory."""

from __future__ import annotations

import asyncio

import pytest

from cilia.api.backend import ApiError
from cilia.apps.agent.forecasting import Forecaster
from tests.support.hubble import events, flow, store


def test_series_are_counted_before_a_metric_is_switched_on() -> None:
    flows = store()
    flows.append([events({**flow(1), "destination_port": 80}, {**flow(2), "destination_port": 81})], offset=0)
    (told,) = asyncio.run(Forecaster(flows).forecast("port-distribution"))
    assert (told.metric, told.series, told.flows) == ("port-distribution", 2, 2)
    assert told.by_label[0] == ("port", 2)


@pytest.mark.parametrize("metrics", ["drops", "flow:sauceContext=pod", "drop drop"])
def test_what_is_no_metric(metrics: str) -> None:
    forecaster = Forecaster(store())
    with pytest.raises(ApiError) as refused:
        asyncio.run(forecaster.forecast(metrics))
    assert refused.value.status == 400 and str(refused.value).endswith(".")


def test_one_at_a_time() -> None:
    flows = store()
    flows.append([events(flow(1))], offset=0)

    async def story() -> None:
        forecaster = Forecaster(flows)
        answers = await asyncio.gather(
            forecaster.forecast("flow"), forecaster.forecast("flow"), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [list, ApiError]
        assert await forecaster.forecast("flow")

    asyncio.run(story())
