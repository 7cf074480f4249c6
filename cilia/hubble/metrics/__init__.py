"""Flows as Prometheus metrics, under the names and with the labels that Hubble's dashboards know.

    store --cursor--> processor --rows--> family --(keys)--> series --samples--> exposition --> server
                          ^                 |
         options (flag, or a YAML file      |-- kinds: which rows count, and a metric's own labels
          that `follower` follows)          |-- contexts: who is behind a row, as label values
                                            '-- index: keys to places, the step all counting stands on

Belongs here: the metrics' options, what each metric counts, the bounded sets of series, the text formats, and
the door where Prometheus knocks.

Must not be here: metrics of the agent itself (the agent's application has them), reading the kernel, deciding
anything. Talks to: the flow store and filters of `hubble`; `kit` for time and TLS. The application starts it
and says which pods exist.

The room's rule holds: label values are made once per distinct party and once per distinct set of label
values, and a batch of rows is a few vector steps for each metric. A metric never has more series than its
budget: what comes beyond is counted in series whose open labels say `other`, so sums stay right.
"""
