"""The controller: the loop that makes what runs match what the store says. One leads; others wait for its lease.

`controller` is one look at the store, from top to bottom: `starts` starts drivers and tells that they are there,
`lost_drivers` finds those whose lease ran out and replaces them, `cancels` ends cancelled studies whose driver does
not, `study_queue` chooses who is next and who makes room, `sharing` tells running studies their shares of the cluster.
`leadership` is the lease of the controller itself, `guarded_jobs` the cluster, as one look may ask it, and `clocks` the
time of leases. The process is in `service.controlling`.
"""

from service.controller.controller import Controller

__all__ = ["Controller"]
