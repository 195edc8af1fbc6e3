"""SGLang, `--enable-metrics`; names read in the wheel sglang 0.5.23.

Live: `realtime_tokens` moves with every forward pass. Its `decode` leaves out the first token of
an answer, which comes out of the prefill; `prefill_compute` has what a retracted request computed
again. Every pipeline rank counts the same passes, and so does every tensor rank under
`--enable-metrics-for-all-schedulers`: of those the highest counts. `dp_rank` adds up.

Before there were live counters: those of finished requests, `prompt_tokens` with cached ones.

`forward_execution_seconds` could narrow the busy time; it needs a device timer that is off by
default, and is left alone.
"""

from wattledger_collectors.scrape.names import Metric, NamesScraper, Source
from wattledger_collectors.scrape.protocol import Kind

_LIVE = "sglang:realtime_tokens"


def scraper() -> NamesScraper:
    """A scraper of SGLang."""
    return NamesScraper(
        kind="sglang",
        mend="start SGLang with --enable-metrics",
        sources=(
            Source(
                {
                    Kind.PREFILL: Metric(_LIVE, {"mode": "prefill_compute"}),
                    Kind.CACHED: Metric(_LIVE, {"mode": "prefill_cache"}),
                    Kind.DECODE: Metric(_LIVE, {"mode": "decode"}),
                }
            ),
            Source(
                {
                    Kind.PROMPT: Metric("sglang:prompt_tokens"),
                    Kind.CACHED: Metric("sglang:cached_tokens"),
                    Kind.DECODE: Metric("sglang:generation_tokens"),
                }
            ),
        ),
        finished=Metric("sglang:num_requests"),
        running=Metric("sglang:num_running_reqs"),
        replica_labels=("tp_rank", "pp_rank", "moe_ep_rank"),
        model_label="model_name",
    )
