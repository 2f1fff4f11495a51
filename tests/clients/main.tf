# What Terraform's aws provider does: it lists staging, and may not list production.

variable "staging" {}
variable "production" {}

terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}

provider "aws" {
  s3_use_path_style      = true
  skip_region_validation = true
}

data "aws_s3_objects" "staging" {
  bucket = var.staging
}

data "aws_s3_objects" "production" {
  bucket     = var.production
  depends_on = [data.aws_s3_objects.staging]
}
