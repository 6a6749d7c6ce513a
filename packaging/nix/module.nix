# A module for NixOS:
#
#   imports = [ ./kvm-portfwd/packaging/nix/module.nix ];
#   services.kvm-portfwd = {
#     enable = true;
#     settings.forward = [ { domain = "web1"; ports = [ "80" "443" ]; } ];
#   };
#
# What `kvm-portfwd check` refuses does not build. Evaluated by the tests with stand-ins for nixpkgs; no system has been
# built with it yet.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.kvm-portfwd;
  written = (pkgs.formats.toml { }).generate "portfwd.toml" cfg.settings;
  # As a draft, since no file of a build belongs to root.
  checked = pkgs.runCommand "portfwd.toml" { nativeBuildInputs = [ cfg.package ]; } ''
    install -m 644 ${written} portfwd.toml
    kvm-portfwd check portfwd.toml
    mv portfwd.toml $out
  '';
in
{
  options.services.kvm-portfwd = {
    enable = lib.mkEnableOption "kvm-portfwd, which keeps ports and public addresses forwarded to libvirt guests";
    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./package.nix { };
      description = "The package to run.";
    };
    settings = lib.mkOption {
      type = (pkgs.formats.toml { }).type;
      default = { };
      example = { forward = [ { domain = "web1"; ports = [ "80" "443" ]; } ]; };
      description = "What /etc/portfwd.toml holds; see portfwd.toml(5).";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    # With a mode, a file of root's own and no link into the store.
    environment.etc."portfwd.toml" = {
      source = checked;
      mode = "0644";
    };
    systemd.packages = [ cfg.package ];
    systemd.tmpfiles.packages = [ cfg.package ];
    systemd.services.kvm-portfwd = {
      wantedBy = [ "multi-user.target" ];
      path = [ pkgs.nftables pkgs.iptables pkgs.ipset ];
      reloadTriggers = [ checked ];
    };
  };
}
