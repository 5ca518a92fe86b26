"""Other projects' losses and optimisers under their own names, on the ops of this package: change one import line.

| project | module |
|---|---|
| lightly | `ssl_fast.dropin.lightly` |
| pytorch-metric-learning | `ssl_fast.dropin.metric_learning` |
| open_clip | `ssl_fast.dropin.open_clip` |
| insightface (arcface_torch) | `ssl_fast.dropin.insightface` |
| davda54/sam | `ssl_fast.dropin.sam` |

None of the projects needs to be installed.
"""
