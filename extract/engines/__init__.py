"""Engines of stage 1: who runs a request, and where. See `base` for the catalogue.

    inline   this process
    local    a process for every GPU of this machine
    ray      actors on the machines of a Ray cluster

Each leads to `request.extract_videos` in one or in many processes; what keeps these from doing a
video twice is the store's claims, so several engines may fill one cache at the same time.
"""
