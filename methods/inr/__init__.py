"""Masks as implicit neural representations: functions of the place and of the mask's area."""
