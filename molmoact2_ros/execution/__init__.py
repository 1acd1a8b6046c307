"""What the arm may do: chunk timeline, splice, limits, supervisor -> one safe set-point a tick. No ROS, no torch."""

from molmoact2_ros.execution.chunk import ChunkMessage, Refusal
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.executor import Executor
from molmoact2_ros.execution.supervisor import Change, Event, State

__all__ = ["Change", "ChunkMessage", "Event", "Executor", "ExecutorConfig", "Refusal", "State"]
