"""Text Generation Inference; names read in its source, v3.3.7.

Sums of histograms: a prompt is counted when it was accepted, before it is computed, and an answer
when it ended well: of one that failed or was aborted the decode tokens are never told. It does not
say what its prefix cache saved: prefill counts whole prompts. What a batch spends in forward passes
(`tgi_batch_forward_duration`) is told when its call ends, too late to narrow a scrape of a second.

The page is on the API's own port. Workers are children of the launcher, beside the router that
listens.
"""

from wattledger_collectors.scrape.names import Metric, NamesScraper, Source
from wattledger_collectors.scrape.protocol import Kind


def scraper() -> NamesScraper:
    """A scraper of Text Generation Inference."""
    return NamesScraper(
        kind="tgi",
        mend="metrics are always on: is url that of its /metrics?",
        sources=(
            Source(
                {
                    Kind.PROMPT: Metric("tgi_request_input_length_sum"),
                    Kind.DECODE: Metric("tgi_request_generated_tokens_sum"),
                }
            ),
        ),
        finished=Metric("tgi_request_success"),
        running=Metric("tgi_batch_current_size"),
        launchers=("text-generation-launcher",),
    )
