"""Turns results into text and files: tables for people, CSV, JSON and Parquet for programs."""
