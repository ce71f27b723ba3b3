"""Teachers turn a batch into a signal."""

from preceptor.teachers.model import ModelTeacher

__all__ = ["ModelTeacher"]
