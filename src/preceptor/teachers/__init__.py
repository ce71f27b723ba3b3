"""Teachers turn a batch into a signal."""

from preceptor.teachers.adapter import AdapterTeacher
from preceptor.teachers.model import ModelTeacher
from preceptor.teachers.routed import RoutedTeacher
from preceptor.teachers.stored import StoredTeacher

__all__ = ["AdapterTeacher", "ModelTeacher", "RoutedTeacher", "StoredTeacher"]
