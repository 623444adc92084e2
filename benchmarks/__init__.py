"""Measures coro beside its floors and its peers: ``python -m benchmarks --help``.

Wall times of a shared machine wander by tens of percent between minutes, but the ratio of two
programs measured a second apart hardly does.  So every case runs all its subjects in turn, each in
a process of its own, and again in the next round; a row shows its median over the rounds, and the
columns to trust are the ratios.

``model``      what a suite, a case, a subject and a measurement are
``trial``      the measured process: how long to work, and the one line it prints
``processes``  the measuring process: starts, pins and ends the measured ones
``rounds``     interleaved rounds
``report``     records for JSON, and tables of them
``pages``      figures, tables and charts as files
``profile``    one subject of a case under a profiler; ``profiled`` is what runs in its place
``machine``    versions and hardware, printed with every run
``memory``     what memory processes have in use
``hosts``      asyncio or uvloop, by name
``switching``, ``echo``, ``fetch``, ``server``, ``footprint``, ``scaling``   the suites: one small
module for each subject
"""
